package interop;

import java.util.ArrayList;
import java.util.Collections;
import java.util.Date;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.CyclicBarrier;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;
import javax.servlet.Filter;
import javax.servlet.http.HttpServletRequest;
import javax.servlet.http.HttpServletResponse;
import javax.sql.DataSource;
import org.apache.catalina.util.ServerInfo;
import org.springframework.beans.factory.annotation.Autowired;
import org.springframework.beans.factory.annotation.Value;
import org.springframework.boot.SpringApplication;
import org.springframework.boot.SpringBootVersion;
import org.springframework.boot.autoconfigure.EnableAutoConfiguration;
import org.springframework.boot.web.servlet.FilterRegistrationBean;
import org.springframework.context.annotation.Bean;
import org.springframework.context.annotation.Configuration;
import org.springframework.core.Ordered;
import org.springframework.core.SpringVersion;
import org.springframework.http.ResponseEntity;
import org.springframework.jdbc.core.JdbcTemplate;
import org.springframework.security.authentication.AuthenticationManager;
import org.springframework.security.authentication.ProviderManager;
import org.springframework.security.config.annotation.authentication.builders.AuthenticationManagerBuilder;
import org.springframework.security.config.annotation.web.builders.HttpSecurity;
import org.springframework.security.config.annotation.web.configuration.WebSecurityConfigurerAdapter;
import org.springframework.security.core.Authentication;
import org.springframework.security.core.SpringSecurityCoreVersion;
import org.springframework.security.core.userdetails.User;
import org.springframework.security.core.userdetails.UserDetailsByNameServiceWrapper;
import org.springframework.security.core.userdetails.UserDetailsService;
import org.springframework.security.core.userdetails.UsernameNotFoundException;
import org.springframework.security.oauth2.common.DefaultExpiringOAuth2RefreshToken;
import org.springframework.security.oauth2.common.DefaultOAuth2AccessToken;
import org.springframework.security.oauth2.common.DefaultOAuth2RefreshToken;
import org.springframework.security.oauth2.common.ExpiringOAuth2RefreshToken;
import org.springframework.security.oauth2.common.OAuth2AccessToken;
import org.springframework.security.oauth2.common.OAuth2RefreshToken;
import org.springframework.security.oauth2.common.exceptions.RedirectMismatchException;
import org.springframework.security.oauth2.config.annotation.configurers.ClientDetailsServiceConfigurer;
import org.springframework.security.oauth2.config.annotation.web.configuration.AuthorizationServerConfigurerAdapter;
import org.springframework.security.oauth2.config.annotation.web.configuration.EnableAuthorizationServer;
import org.springframework.security.oauth2.config.annotation.web.configuration.EnableResourceServer;
import org.springframework.security.oauth2.config.annotation.web.configuration.ResourceServerConfigurerAdapter;
import org.springframework.security.oauth2.config.annotation.web.configurers.AuthorizationServerEndpointsConfigurer;
import org.springframework.security.oauth2.config.annotation.web.configurers.AuthorizationServerSecurityConfigurer;
import org.springframework.security.oauth2.config.annotation.web.configurers.ResourceServerSecurityConfigurer;
import org.springframework.security.oauth2.provider.ClientDetailsService;
import org.springframework.security.oauth2.provider.OAuth2Authentication;
import org.springframework.security.oauth2.provider.authentication.OAuth2AuthenticationDetails;
import org.springframework.security.oauth2.provider.error.OAuth2AuthenticationEntryPoint;
import org.springframework.security.oauth2.provider.token.DefaultTokenServices;
import org.springframework.security.oauth2.provider.token.TokenEnhancer;
import org.springframework.security.oauth2.provider.token.TokenStore;
import org.springframework.security.oauth2.provider.token.store.InMemoryTokenStore;
import org.springframework.security.oauth2.provider.token.store.JdbcTokenStore;
import org.springframework.security.web.authentication.preauth.PreAuthenticatedAuthenticationProvider;
import org.springframework.web.bind.annotation.DeleteMapping;
import org.springframework.web.bind.annotation.GetMapping;
import org.springframework.web.bind.annotation.PostMapping;
import org.springframework.web.bind.annotation.RequestParam;
import org.springframework.web.bind.annotation.RestController;

/**
 * CameraManager's login, tokens and a little of its API, by Spring Security OAuth itself.
 *
 * <p>{@code java -jar spring.jar --server.port=9500 --store=memory|jdbc --reuse=true|false
 * --access=43199 --refresh=0 --phantom=false}: the lifetimes are in seconds, 0 for no end. What
 * is not set here is Spring's default. Ours are the shape of the tokens, redirect URIs of any
 * address, and errors of the token endpoint in JSON also where HTTP Basic is refused.
 */
@EnableAutoConfiguration
@Configuration
public class CameraManager {

  static final Map<String, Integer> USERS =
      Map.of("anna@example.com", 10003, "bob@example.com", 10007);
  static final Map<String, List<String>> CAMERAS =
      Map.of(
          "anna@example.com", List.of("Front gate", "Parking lot", "Warehouse", "Loading dock"),
          "bob@example.com", List.of("Shop floor", "Back door"));

  public static void main(String[] arguments) {
    SpringApplication app =
        new SpringApplication(
            CameraManager.class,
            OAuthServer.class,
            API.class,
            Login.class,
            Controllers.class,
            Control.class);
    Map<String, Object> defaults = new HashMap<>();
    defaults.put("server.address", "127.0.0.1");
    // Cookies know no ports (RFC 6265 §8.5): the applications are on 127.0.0.1, too.
    defaults.put("server.servlet.session.cookie.name", "SPRING");
    defaults.put("spring.main.banner-mode", "off");
    defaults.put("spring.datasource.url", "jdbc:h2:mem:tokens;DB_CLOSE_DELAY=-1");
    app.setDefaultProperties(defaults);
    app.run(arguments);
  }

  /** Gives tokens of CameraManager's shape, a UUID and the user's number. */
  static class Enhancer implements TokenEnhancer {
    private final boolean phantom;

    /**
     * @param phantom a refresh answers with a refresh token that the store does not know, as
     *     enhancers do that make a new one each time.
     */
    Enhancer(boolean phantom) {
      this.phantom = phantom;
    }

    @Override
    public OAuth2AccessToken enhance(OAuth2AccessToken made, OAuth2Authentication login) {
      String end = ":" + USERS.get(login.getName());
      DefaultOAuth2AccessToken token = new DefaultOAuth2AccessToken(made);
      token.setValue(UUID.randomUUID() + end);
      OAuth2RefreshToken refresh = token.getRefreshToken();
      if (refresh != null && (phantom || !refresh.getValue().endsWith(end))) {
        token.setRefreshToken(renamed(refresh, UUID.randomUUID() + end));
      }
      return token;
    }

    private static OAuth2RefreshToken renamed(OAuth2RefreshToken token, String value) {
      if (token instanceof ExpiringOAuth2RefreshToken) {
        Date end = ((ExpiringOAuth2RefreshToken) token).getExpiration();
        return new DefaultExpiringOAuth2RefreshToken(value, end);
      }
      return new DefaultOAuth2RefreshToken(value);
    }
  }

  /** Lets two logins, or two refreshes, at once read what is stored before either changes it. */
  static class Rendezvous {
    volatile CyclicBarrier barrier;

    void meet() {
      CyclicBarrier meeting = barrier;
      if (meeting != null) {
        try {
          meeting.await(3, TimeUnit.SECONDS);
        } catch (Exception alone) {
          barrier = null;
        }
      }
    }
  }

  @Bean
  Rendezvous rendezvous() {
    return new Rendezvous();
  }

  @Bean
  TokenStore tokenStore(
      @Value("${store:memory}") String kind, DataSource database, Rendezvous rendezvous) {
    if (kind.equals("memory")) {
      return new InMemoryTokenStore() {
        @Override
        public OAuth2AccessToken getAccessToken(OAuth2Authentication authentication) {
          OAuth2AccessToken token = super.getAccessToken(authentication);
          rendezvous.meet();
          return token;
        }

        @Override
        public OAuth2RefreshToken readRefreshToken(String value) {
          OAuth2RefreshToken token = super.readRefreshToken(value);
          rendezvous.meet();
          return token;
        }

        // Its set of a user's tokens is a HashSet, which two logins at once can break for good.
        @Override
        public synchronized void storeAccessToken(
            OAuth2AccessToken token, OAuth2Authentication authentication) {
          super.storeAccessToken(token, authentication);
        }

        @Override
        public synchronized void removeAccessToken(String value) {
          super.removeAccessToken(value);
        }
      };
    }
    JdbcTemplate jdbc = new JdbcTemplate(database);
    // As in schema.sql of Spring Security OAuth's own tests.
    jdbc.execute(
        "create table oauth_access_token (token_id varchar(256), token blob,"
            + " authentication_id varchar(256) primary key, user_name varchar(256),"
            + " client_id varchar(256), authentication blob, refresh_token varchar(256))");
    jdbc.execute(
        "create table oauth_refresh_token (token_id varchar(256), token blob,"
            + " authentication blob)");
    return new JdbcTokenStore(database) {
      @Override
      public OAuth2AccessToken getAccessToken(OAuth2Authentication authentication) {
        OAuth2AccessToken token = super.getAccessToken(authentication);
        rendezvous.meet();
        return token;
      }

      @Override
      public OAuth2RefreshToken readRefreshToken(String value) {
        OAuth2RefreshToken token = super.readRefreshToken(value);
        rendezvous.meet();
        return token;
      }
    };
  }

  @Bean
  DefaultTokenServices tokenServices(
      TokenStore store,
      ClientDetailsService clients,
      UserDetailsService users,
      @Value("${reuse:true}") boolean reuse,
      @Value("${phantom:false}") boolean phantom,
      @Value("${access:43199}") int access,
      @Value("${refresh:0}") int refresh) {
    DefaultTokenServices services = new DefaultTokenServices();
    services.setTokenStore(store);
    services.setClientDetailsService(clients);
    services.setSupportRefreshToken(true);
    services.setReuseRefreshToken(reuse);
    services.setTokenEnhancer(new Enhancer(phantom));
    services.setAccessTokenValiditySeconds(access);
    services.setRefreshTokenValiditySeconds(refresh);
    // As AuthorizationServerEndpointsConfigurer does for services that it makes itself.
    PreAuthenticatedAuthenticationProvider provider = new PreAuthenticatedAuthenticationProvider();
    provider.setPreAuthenticatedUserDetailsService(new UserDetailsByNameServiceWrapper<>(users));
    services.setAuthenticationManager(new ProviderManager(provider));
    return services;
  }

  /** The users, of whom a test may disable one. */
  static class Users implements UserDetailsService {
    final Map<String, Boolean> disabled = new HashMap<>();

    @Override
    public User loadUserByUsername(String email) {
      if (!USERS.containsKey(email)) {
        throw new UsernameNotFoundException(email);
      }
      boolean enabled = !disabled.getOrDefault(email, false);
      return new User(email, "{noop}cameras", enabled, true, true, true, Collections.emptyList());
    }
  }

  @Bean
  static Users users() {
    return new Users();
  }

  @Configuration
  @EnableAuthorizationServer
  static class OAuthServer extends AuthorizationServerConfigurerAdapter {
    @Autowired TokenStore store;
    @Autowired DefaultTokenServices services;
    @Autowired AuthenticationManager manager;

    @Override
    public void configure(AuthorizationServerSecurityConfigurer security) {
      OAuth2AuthenticationEntryPoint json = new OAuth2AuthenticationEntryPoint();
      json.setTypeName("Basic");
      json.setRealmName("oauth2/client");
      security.authenticationEntryPoint(json);
      security.allowFormAuthenticationForClients();
    }

    @Override
    public void configure(ClientDetailsServiceConfigurer clients) throws Exception {
      String[] grants = {"authorization_code", "refresh_token", "password"};
      clients
          .inMemory()
          .withClient("demo-key-id")
          .secret("{noop}demo-key-secret")
          .authorizedGrantTypes(grants)
          .scopes("read", "write")
          .and()
          .withClient("other-key-id")
          .secret("{noop}other-key-secret")
          .authorizedGrantTypes(grants)
          .scopes("read", "write");
    }

    @Override
    public void configure(AuthorizationServerEndpointsConfigurer endpoints) {
      endpoints
          .tokenStore(store)
          .tokenServices(services)
          .authenticationManager(manager)
          .redirectResolver(
              (uri, client) -> {
                if (uri == null || !uri.matches("https?://[^/#]+(/[^#]*)?")) {
                  throw new RedirectMismatchException("Invalid redirect URI");
                }
                return uri;
              });
    }
  }

  @Configuration
  @EnableResourceServer
  static class API extends ResourceServerConfigurerAdapter {
    @Autowired DefaultTokenServices services;

    @Override
    public void configure(ResourceServerSecurityConfigurer resources) {
      resources.tokenServices(services);
    }

    @Override
    public void configure(HttpSecurity http) throws Exception {
      http.requestMatchers()
          .antMatchers("/rest/**")
          .and()
          .authorizeRequests()
          .anyRequest()
          .authenticated();
    }
  }

  @Configuration
  static class Login extends WebSecurityConfigurerAdapter {
    @Autowired Users users;

    @Override
    protected void configure(AuthenticationManagerBuilder builder) throws Exception {
      builder.userDetailsService(users);
    }

    @Bean
    @Override
    public AuthenticationManager authenticationManagerBean() throws Exception {
      return super.authenticationManagerBean();
    }

    @Override
    protected void configure(HttpSecurity http) throws Exception {
      http.authorizeRequests()
          .antMatchers("/_control/**", "/error")
          .permitAll()
          .anyRequest()
          .authenticated()
          .and()
          .formLogin()
          .and()
          .csrf()
          .ignoringAntMatchers("/_control/**");
    }
  }

  @RestController
  static class Controllers {
    @Autowired DefaultTokenServices services;

    @GetMapping({"/rest/v2.3/users/self", "/rest/v2.4/users/self"})
    Map<String, Object> self(Authentication login) {
      String name = login.getName().replaceAll("@.*", "");
      Map<String, Object> user = new LinkedHashMap<>();
      user.put("userId", USERS.get(login.getName()));
      user.put("accountId", USERS.get(login.getName()) - 9502);
      user.put("email", login.getName());
      user.put("firstName", name.substring(0, 1).toUpperCase() + name.substring(1));
      user.put("lastName", "Example");
      user.put("language", "en");
      return user;
    }

    @GetMapping("/rest/v2.4/cameras")
    List<Map<String, Object>> cameras(Authentication login) {
      int user = USERS.get(login.getName());
      List<Map<String, Object>> cameras = new ArrayList<>();
      for (String name : CAMERAS.get(login.getName())) {
        Map<String, Object> camera = new LinkedHashMap<>();
        camera.put("cameraId", user * 10 + cameras.size());
        camera.put("name", name);
        camera.put("accountId", user - 9502);
        camera.put("zoneId", 1);
        camera.put("ethernetMacAddress", "02:00:00:00:00:0" + cameras.size());
        cameras.add(camera);
      }
      return cameras;
    }

    @DeleteMapping("/rest/v2.0/users/self/tokens/current")
    ResponseEntity<Void> logout(OAuth2Authentication login) {
      services.revokeToken(((OAuth2AuthenticationDetails) login.getDetails()).getTokenValue());
      return ResponseEntity.noContent().build();
    }
  }

  /** What a test asks for and changes, beside OAuth. */
  @RestController
  static class Control {
    private final List<Map<String, Object>> requests =
        Collections.synchronizedList(new ArrayList<>());
    @Autowired TokenStore store;
    @Autowired DefaultTokenServices services;
    @Autowired Users users;
    @Autowired Rendezvous rendezvous;

    /** The calls so far, a user's living tokens, and which versions these are. */
    @GetMapping("/_control/state")
    Map<String, Object> state(@RequestParam(defaultValue = "anna@example.com") String email) {
      Map<String, Object> state = new LinkedHashMap<>();
      state.put("requests", List.copyOf(requests));
      state.put(
          "tokens",
          store.findTokensByClientIdAndUserName("demo-key-id", email).stream()
              .map(token -> List.of(token.getValue(), token.getRefreshToken().getValue()))
              .collect(Collectors.toList()));
      Map<String, String> versions = new LinkedHashMap<>();
      versions.put("Spring Security OAuth", version(TokenStore.class));
      versions.put("Spring Boot", SpringBootVersion.getVersion());
      versions.put("Spring", SpringVersion.getVersion());
      versions.put("Spring Security", SpringSecurityCoreVersion.getVersion());
      versions.put("Tomcat", ServerInfo.getServerNumber());
      versions.put("H2", version(org.h2.Driver.class));
      versions.put("Java", System.getProperty("java.version"));
      state.put("versions", versions);
      return state;
    }

    /** The version in the name of the jar that a class is from. */
    private static String version(Class<?> type) {
      String jar = type.getProtectionDomain().getCodeSource().getLocation().toString();
      return jar.replaceAll(".*/[a-z0-9-]+?-([0-9][^/]*)\\.jar!?/?", "$1");
    }

    /** Sets the lifetimes, in seconds, of the tokens that are made from now on. */
    @PostMapping("/_control/lifetimes")
    void lifetimes(@RequestParam int access, @RequestParam int refresh) {
      services.setAccessTokenValiditySeconds(access);
      services.setRefreshTokenValiditySeconds(refresh);
    }

    /** Ends all tokens of a user. */
    @PostMapping("/_control/revoke")
    void revoke(@RequestParam String email) {
      for (String client : List.of("demo-key-id", "other-key-id")) {
        // A copy: the store in memory hands out the collection that it removes from.
        List.copyOf(store.findTokensByClientIdAndUserName(client, email))
            .forEach(token -> services.revokeToken(token.getValue()));
      }
    }

    /** Refuses a user's logins and refreshes, or no longer does. */
    @PostMapping("/_control/disable")
    void disable(@RequestParam String email, @RequestParam boolean disabled) {
      users.disabled.put(email, disabled);
    }

    /** Lets each two logins from now on happen at the very same moment, until one is alone. */
    @PostMapping("/_control/rendezvous")
    void rendezvous() {
      rendezvous.barrier = new CyclicBarrier(2);
    }

    @PostMapping("/_control/forget")
    void forget() {
      rendezvous.barrier = null;
      requests.clear();
    }

    @Bean
    FilterRegistrationBean<Filter> recorder() {
      Filter filter =
          (request, response, chain) -> {
            HttpServletRequest call = (HttpServletRequest) request;
            chain.doFilter(request, response);
            if (!call.getRequestURI().startsWith("/_control")) {
              Map<String, Object> entry = new LinkedHashMap<>();
              entry.put("method", call.getMethod());
              entry.put("path", call.getRequestURI());
              entry.put("grant_type", String.valueOf(call.getParameter("grant_type")));
              entry.put("status", ((HttpServletResponse) response).getStatus());
              requests.add(entry);
            }
          };
      FilterRegistrationBean<Filter> bean = new FilterRegistrationBean<>(filter);
      bean.setOrder(Ordered.HIGHEST_PRECEDENCE);
      return bean;
    }
  }
}
